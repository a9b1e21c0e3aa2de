//! Reading what model files say about themselves.
