"""Worker: sandboxes on one host, the Lambda Runtime API, code cache, logs and metering."""
