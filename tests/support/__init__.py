"""What tests of several parts share: engines, proxies, servers, canaries, virtual time."""
