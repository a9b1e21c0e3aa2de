//! Scheduling: which host is asked for which range, decided without IO or a clock.
