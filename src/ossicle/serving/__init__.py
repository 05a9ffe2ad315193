"""An ear as a server: OpenAI's protocol over an engine on this computer or one elsewhere, and a page to talk to it."""
