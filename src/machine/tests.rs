//! Tests of the machine: state and emitted actions.
