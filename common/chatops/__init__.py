"""Chat as a face of the API: the grammar of what people type, and Block Kit for what they read. Pure."""
