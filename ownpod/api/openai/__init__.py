"""The routes below ``/v2/{endpoint}/openai`` for OpenAI's clients."""
