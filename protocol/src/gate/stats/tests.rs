//! Tests of the stats.
