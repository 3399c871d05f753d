"""The official chat SDK against the endpoint and the emulator, in Node and in Chromium."""
