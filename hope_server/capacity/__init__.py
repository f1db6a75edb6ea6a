"""How many servers, and how large a store, so many sessions need: arithmetic and simulation from measured constants."""
