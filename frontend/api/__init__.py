"""AWS Lambda's REST API over botocore's own service model."""
