//! How many connections there may be: in all, from one address, and before anything was answered.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::refusal::Refusal;
use crate::config::WebConfig;

/// Counts connections, and holds them to the limits. Its memory is bounded by the connections there are.
#[derive(Debug)]
pub(super) struct Gate {
    counts: Mutex<Counts>,
    max: usize,
    max_per_address: usize,
    max_pending: usize,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    pending: usize,
    addresses: HashMap<IpAddr, usize>,
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    gate: Arc<Gate>,
    address: Option<IpAddr>,
    pending: AtomicBool,
}

impl Gate {
    pub(super) fn new(config: &WebConfig) -> Self {
        Self {
            counts: Mutex::default(),
            max: config.max_connections,
            max_per_address: config.max_per_address,
            max_pending: config.max_pending,
        }
    }

    /// Takes a place for a connection that has not been answered yet.
    pub(super) fn enter(self: &Arc<Self>, from: Option<IpAddr>) -> Result<Place, Refusal> {
        let address = from.map(neighbourhood);
        let mut counts = self.lock();
        if counts.all >= self.max {
            return Err(Refusal::Full);
        }
        if counts.pending >= self.max_pending {
            return Err(Refusal::Pending);
        }
        if let Some(address) = address {
            let here = counts.addresses.get(&address).copied().unwrap_or(0);
            if here >= self.max_per_address {
                return Err(Refusal::Address);
            }
            counts.addresses.insert(address, here + 1);
        }
        counts.all += 1;
        counts.pending += 1;
        drop(counts);
        Ok(Place { gate: Arc::clone(self), address, pending: AtomicBool::new(true) })
    }

    /// Connections in all, and those of them that have not been answered yet.
    pub(super) fn counts(&self) -> (usize, usize) {
        let counts = self.lock();
        (counts.all, counts.pending)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Something was answered.
    pub(super) fn answered(&self) {
        if self.pending.swap(false, Ordering::Relaxed) {
            self.gate.lock().pending -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.answered();
        let mut counts = self.gate.lock();
        counts.all -= 1;
        let Some(address) = self.address else { return };
        if let Some(here) = counts.addresses.get_mut(&address) {
            *here -= 1;
            if *here == 0 {
                counts.addresses.remove(&address);
            }
        }
    }
}

/// Who is taken for one: an address, or a /64 of IPv6, which is what one customer gets.
pub(super) fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(max: usize, max_per_address: usize, max_pending: usize) -> Arc<Gate> {
        let config = WebConfig { max_connections: max, max_per_address, max_pending, ..WebConfig::default() };
        Arc::new(Gate::new(&config))
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn each_limit_holds_and_places_come_back() {
        let gate = gate(4, 2, 3);
        let first = gate.enter(ip("10.0.0.1")).unwrap();
        let second = gate.enter(ip("10.0.0.1")).unwrap();
        assert_eq!(gate.enter(ip("10.0.0.1")).unwrap_err(), Refusal::Address);
        let third = gate.enter(ip("10.0.0.2")).unwrap();
        assert_eq!(gate.enter(ip("10.0.0.3")).unwrap_err(), Refusal::Pending);
        third.answered();
        third.answered();
        let fourth = gate.enter(None).unwrap();
        assert_eq!(gate.enter(None).unwrap_err(), Refusal::Full);
        assert_eq!(gate.counts(), (4, 3));
        drop((first, second, third, fourth));
        assert_eq!(gate.counts(), (0, 0));
        assert!(gate.lock().addresses.is_empty(), "nothing is remembered of who has gone");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_a_mapped_one_is_ipv4() {
        let gate = gate(9, 1, 9);
        let _one = gate.enter(ip("2001:db8::1")).unwrap();
        assert_eq!(gate.enter(ip("2001:db8::2:3:4:5")).unwrap_err(), Refusal::Address);
        let _other = gate.enter(ip("2001:db8:0:1::1")).unwrap();
        let _v4 = gate.enter(ip("10.0.0.1")).unwrap();
        assert_eq!(gate.enter(ip("::ffff:10.0.0.1")).unwrap_err(), Refusal::Address);
    }
}
