"""Every promise of Pilotfish, kept by this plugin; `pilotfish verify` checks the same."""

import pytest


@pytest.mark.pilotfish("StableLmForCausalLM")
def test_conformance(promise):
    promise.keep()
