//! A pure function from world and proxy view to xDS resources.
