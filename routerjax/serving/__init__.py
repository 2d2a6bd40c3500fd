"""OpenAI-compatible server in front of a router's models: ``routerjax serve``; needs the extra ``serve``."""
