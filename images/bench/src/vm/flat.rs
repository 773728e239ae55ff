//! What a start in the background wins: when the monitor greets, when the guest executes, when it can use its device, and
//! when all is mapped.

use std::collections::BTreeMap;

use serde::Serialize;
use vfio_fast_protocol::memory::MemoryKind;
use vfio_fast_protocol::record::{Order, Start};

use crate::summary::Spread;
use crate::table::{Table, ratio, seconds};
use crate::targets::gib;

/// The starts for one memory and size.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub memory: MemoryKind,
    pub bytes: u64,
    /// Seconds until the guest executes without a passed through device.
    pub no_device: Spread,
    /// Seconds until the guest executes, mapped in the background.
    pub background: Spread,
    /// The background's time divided by the one without a device, in the same round.
    pub of_no_device: Spread,
    /// The background's time divided by the one of the smallest guest in the round of the same number.
    pub of_smallest: Spread,
    /// Seconds until the guest could use its device, mapped before the guest starts.
    pub device_fast: Spread,
    /// The same in the background: until the gate was open.
    pub device_background: Spread,
    /// The background's divided by the other, in the same round.
    pub device_ratio: Spread,
    /// The background's time until all was mapped, divided by that of mapping before the guest starts, in the same round.
    pub mapped_ratio: Spread,
    /// The background's time until the monitor's greeting, divided by that of QEMU's own listener, in the same round.
    pub greeting_ratio: Spread,
}

/// Aggregates starts, each given with the bytes of its guest.
pub fn rows(starts: &[(u64, Start)]) -> Vec<Row> {
    let mut cases: BTreeMap<(MemoryKind, u64), Case> = BTreeMap::new();
    for (bytes, start) in starts {
        cases.entry((start.memory, *bytes)).or_default().insert((start.order, start.round), start);
    }
    let smallest = starts.iter().map(|(bytes, _)| *bytes).min().unwrap_or(0);
    let rows = cases.iter().filter_map(|(&(memory, bytes), case)| {
        Some(row(memory, bytes, case, cases.get(&(memory, smallest))?))
    });
    rows.filter(|row| row.background.count > 0).collect()
}

/// The starts for one memory and size, by order and round.
type Case<'a> = BTreeMap<(Order, u32), &'a Start>;

fn row(memory: MemoryKind, bytes: u64, case: &Case, smallest: &Case) -> Row {
    let of = |order, value: fn(&Start) -> u64| {
        let starts = case.iter().filter(move |((its, _), _)| *its == order);
        Spread::of(starts.map(|(_, start)| value(start) as f64 / 1e9))
    };
    // The background's value divided by that of an order of `others`.
    let divided = |others: &Case, order, value: fn(&Start) -> u64| {
        let starts = case.iter().filter(|((its, _), _)| *its == Order::Background);
        Spread::of(starts.filter_map(|((_, round), start)| {
            let other = others.get(&(order, *round))?;
            Some(value(start) as f64 / value(other) as f64)
        }))
    };
    let executes = |start: &Start| start.first_instruction.at_ns;
    let mapped = |start: &Start| start.mapped_ns;
    let greets = |start: &Start| start.greeting_ns;
    let device = |start: &Start| start.device_ns;
    Row {
        memory,
        bytes,
        no_device: of(Order::NoDevice, executes),
        background: of(Order::Background, executes),
        of_no_device: divided(case, Order::NoDevice, executes),
        of_smallest: divided(smallest, Order::Background, executes),
        device_fast: of(Order::Fast, device),
        device_background: of(Order::Background, device),
        device_ratio: divided(case, Order::Fast, device),
        mapped_ratio: divided(case, Order::Fast, mapped),
        greeting_ratio: divided(case, Order::Stock, greets),
    }
}

pub fn table(rows: &[Row]) -> Table {
    let cells = |row: &Row| {
        vec![
            row.memory.name().into(),
            gib(row.bytes),
            seconds(row.no_device),
            seconds(row.background),
            ratio(row.of_no_device),
            ratio(row.of_smallest),
            seconds(row.device_fast),
            seconds(row.device_background),
            ratio(row.device_ratio),
            ratio(row.mapped_ratio),
            ratio(row.greeting_ratio),
        ]
    };
    Table {
        head: vec![
            "memory",
            "size",
            "executes, no device",
            "executes, background",
            "of no device",
            "of the smallest",
            "device started, fast",
            "device started, background",
            "of fast",
            "all mapped, of fast",
            "greeting, of stock",
        ],
        rows: rows.iter().map(cells).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::tests::{GIB, right};

    #[test]
    fn ratios_are_of_the_right_orders() {
        let mut starts = Vec::new();
        for (size, factor) in [(GIB, 1), (2 * GIB, 3)] {
            for mut start in right() {
                let (executes, mapped, greets, device) = match start.order {
                    Order::NoDevice => (10, 0, 10, 0),
                    Order::Background => (20 * factor, 30, 15, 90),
                    Order::Fast => (50, 40, 50, 60),
                    _ => (60, 50, 60, 70),
                };
                start.first_instruction.at_ns = executes;
                (start.mapped_ns, start.greeting_ns, start.device_ns) = (mapped, greets, device);
                starts.push((size, start));
            }
        }
        let rows = rows(&starts);
        assert_eq!(rows.len(), 2 * MemoryKind::UNRESERVED.len());
        let medians = |row: &Row| {
            [row.of_no_device, row.of_smallest, row.device_ratio, row.mapped_ratio, row.greeting_ratio]
                .map(|ratio| ratio.median)
        };
        assert_eq!(medians(&rows[0]), [2.0, 1.0, 1.5, 0.75, 0.25]);
        assert_eq!(medians(&rows[1]), [6.0, 3.0, 1.5, 0.75, 0.25]);
        assert!(rows.iter().all(|row| row.of_smallest.count == 2));
    }
}
