//! Our own transports do what the port asks for.
#![cfg(all(feature = "runtime", feature = "testing"))]

mod memory {
    lastmile::transport_suite!(lastmile::memory_transport());
}

mod network {
    use lastmile::testing::{Network, NetworkWeather};

    lastmile::transport_suite!(Network::new(1, NetworkWeather::calm()).connect().unwrap());
}

mod slow_network {
    use lastmile::testing::{Network, NetworkWeather};

    const SLOW: NetworkWeather = NetworkWeather { latency: 1, jitter: 3, ..NetworkWeather::calm() };

    lastmile::transport_suite!(Network::new(1, SLOW).connect().unwrap());
}
