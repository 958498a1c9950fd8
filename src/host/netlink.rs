//! Links, addresses, routes, neighbours and qdiscs of a network namespace.
