"""The page of ``aioivschat demo``, its server and its crowd."""
