//! Tests that make and pin namespaces.
