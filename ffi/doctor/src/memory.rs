//! Whether the memory of the host holds the guest, and what a pin has to move.

use crate::ask::Ask;
use crate::finding::Finding;
use crate::host::Host;
use crate::huge_pages;
use crate::size::Size;

const TOPIC: &str = "memory";

pub fn check(host: &Host, ask: &Ask) -> Vec<Finding> {
    let movable = Movable::read(host);
    let mut findings: Vec<Finding> = room(host, ask, movable.as_ref()).into_iter().collect();
    findings.push(movable.map_or_else(unknown, |movable| of_movable(host, &movable)));
    findings
}

/// Whether the guest fits. Pinned memory is never swapped, and never lies in movable memory.
fn room(host: &Host, ask: &Ask, movable: Option<&Movable>) -> Option<Finding> {
    let (total, available) = (host.meminfo("MemTotal:")?, host.meminfo("MemAvailable:")?);
    let mut what = format!("{} of {} available", Size(available), Size(total));
    let Some(guest) = ask.guest else { return Some(Finding::fine(TOPIC, what)) };
    let movable = movable.map_or(0, Movable::bytes);
    let pool = huge_pages::largest_free(host);
    what += &format!("; the guest needs {}", Size(guest));
    if guest <= pool {
        return Some(Finding::fine(TOPIC, format!("{what}, which a pool of huge pages has free")));
    }
    Some(if guest > total.saturating_sub(movable) && movable > 0 {
        let what = format!("{what}; {} are movable memory, where nothing can be pinned", Size(movable));
        Finding::blocks(
            TOPIC,
            what,
            "less movablecore= or cma= on the kernel's command line, or a smaller guest",
        )
    } else if guest > available {
        let fix = if guest > total {
            "give the guest less memory"
        } else {
            "free memory: what is pinned is not swapped"
        };
        Finding::blocks(TOPIC, what, fix)
    } else {
        Finding::fine(TOPIC, what)
    })
}

/// Memory that a pin moves, in bytes.
struct Movable {
    zone: u64,
    cma: u64,
}

impl Movable {
    fn read(host: &Host) -> Option<Self> {
        let mut in_zone = false;
        let mut pages = 0u64;
        for line in host.read("proc/zoneinfo")?.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("Node"), _) => in_zone = line.ends_with(" Movable"),
                (Some("managed"), Some(number)) if in_zone => {
                    pages = pages.saturating_add(number.parse().unwrap_or(0));
                }
                _ => {}
            }
        }
        let page = rustix::param::page_size() as u64;
        Some(Self { zone: pages.saturating_mul(page), cma: host.meminfo("CmaTotal:").unwrap_or(0) })
    }

    fn bytes(&self) -> u64 {
        self.zone.saturating_add(self.cma)
    }
}

fn unknown() -> Finding {
    let what = "/proc/zoneinfo cannot be read: whether a pin has to move pages is not known";
    Finding::better(TOPIC, what, "allow /proc/zoneinfo (packaging/apparmor/vfio-fast has the rules)")
}

/// How memory is faulted in on a host with movable memory: as the library chooses it (`populate/method.rs`).
fn of_movable(host: &Host, movable: &Movable) -> Finding {
    if movable.bytes() == 0 {
        return Finding::fine(TOPIC, "no ZONE_MOVABLE and no CMA area: a pin moves no page");
    }
    let what = format!(
        "ZONE_MOVABLE {}, CMA {}: a pin moves pages out of it",
        Size(movable.zone),
        Size(movable.cma)
    );
    let less = "or less movablecore= and cma= on the kernel's command line";
    if !host.is_at_least((6, 12)) {
        let fix = format!("install Linux 6.12 or newer, for pins by io_uring\n{less}");
        return Finding::better(
            TOPIC,
            format!("{what}, so the map calls fault memory in, with type1 on one thread"),
            fix,
        );
    }
    if !may_use_uring(host) {
        let what = format!(
            "{what}, and io_uring is forbidden: the map calls fault memory in, with type1 on one thread"
        );
        return Finding::better(TOPIC, what, format!("sysctl -w kernel.io_uring_disabled=0\n{less}"));
    }
    Finding::fine(TOPIC, format!("{what}; the library avoids that with pins by io_uring"))
}

fn may_use_uring(host: &Host) -> bool {
    match host.number("proc/sys/kernel/io_uring_disabled") {
        None | Some(0) => true,
        Some(1) => {
            let group = host.number("proc/sys/kernel/io_uring_group");
            let member = host.user.groups.iter().any(|own| Some(u64::from(*own)) == group);
            member || host.user.is_admin()
        }
        Some(_) => false,
    }
}
