//! Servers that go, come back, freeze, forget, fail over; links that break at any byte; shards that don't take.
