"""The server: an engine that answers many requests at once, an HTTP API, a web page and MCP.

- :mod:`imprag.serving.engine`: continuous batching over a pipeline;
- :mod:`imprag.serving.app`: the application, for any ASGI server;
- :mod:`imprag.serving.mcp`: tools for MCP clients.

``pip install "imprag[serve]"`` installs what they need.
"""
