//! Signed facts: in-toto statements in DSSE envelopes, per-signer chains, and the fold that turns them into state.
