"""Storage: function metadata, code blobs, lease records: small interfaces with interchangeable implementations.
"""
