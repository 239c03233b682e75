"""Use in context: prompts with examples, choosing them, and retrieval from documents."""
