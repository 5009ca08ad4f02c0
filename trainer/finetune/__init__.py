"""Fine-tuning jobs: request schemas, the API service, and the worker process."""
