"""OpenAI's Realtime protocol over a WebSocket: sound in as it is spoken, text out, in front of any engine."""
