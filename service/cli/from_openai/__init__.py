"""`hatrack import openai`: fine-tuning jobs and their files from OpenAI, as jobs of this gateway."""
