"""Uploads: training data, documents, results (OpenAI's files API)."""
