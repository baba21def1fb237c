"""A local server of one model: the OpenAI-compatible interface, its queue, and one chat page.

``settings`` what may be set; ``protocol`` requests and responses; ``worker`` the one thread that owns the model;
``guard`` who may speak to it; ``application`` the routes; ``server`` socket, signals, limits of connections.
"""
