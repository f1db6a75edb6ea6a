"""Load tests over HTTP: Locust users, a ledger of what was acknowledged, and checks of what must hold after."""
