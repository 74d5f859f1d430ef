"""The promises, one module a group; `pilotfish.testing.suite` lists them."""
