//! Runs dpdk-testpmd twice on a Debian host, without the library and preloaded with it. It sends packets through two
//! network cards, each of which receives what the other one sends, and sends on what it receives.

use std::fs::{self, File};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use vfio_fast_protocol::scenarios::dpdk::Check;
use vfio_fast_protocol::witness::{self, Call};

use crate::l1::checks::{exit, preloaded};
use crate::l1::lab::Lab;
use crate::l1::{debian, preload};
use crate::machine;
use crate::wait::{Seen, wait_for};

const TESTPMD: &str = "/usr/bin/dpdk-testpmd";
const WITNESS: &str = "/run/witness";
/// Pages of 2 MiB: more than it takes.
const HUGE_PAGES: u32 = 128;
/// Each card has received this many packets before it ends: many times as many as testpmd begins with.
const PACKETS: u64 = 1000;

pub fn run(lab: &Lab) -> Result<()> {
    machine::set("/proc/sys/vm/nr_hugepages", &HUGE_PAGES.to_string())?;
    let pinned = exit::pinned_pages()?;
    lab.report.step("without");
    let without = one(lab, false)?;
    lab.report.step("preloaded");
    let with = one(lab, true)?;
    let summary = preloaded::summary(lab);
    preloaded::same_calls(lab, Check::SameCalls, &without, &with);
    preloaded::summary_agrees(lab, Check::SummaryAgrees, &with, &summary);
    let left: Vec<String> = exit::still_pinned(pinned)?.into_iter().collect();
    lab.report.check(Check::NothingPinned, &left, "no page more than before");
    Ok(())
}

/// One testpmd; returns every call that it made.
fn one(lab: &Lab, preloaded: bool) -> Result<Vec<Call>> {
    let name = if preloaded { "testpmd-preloaded" } else { "testpmd" };
    let _ = fs::remove_file(WITNESS);
    let mut command = match preloaded {
        true => preload::start(debian::RUN, preload::SUMMARY),
        false => Command::new(TESTPMD),
    };
    if preloaded {
        command.arg(TESTPMD);
    }
    // Where memory lies decides the addresses that the cards use.
    command.args(["-l", "0,1", "--in-memory", "--no-telemetry", "--iova-mode=va"]);
    command.args(lab.job.devices.iter().flat_map(|device| ["-a", device]));
    command.args(["--", "--forward-mode=io", "--tx-first", "--stats-period=1", "--total-num-mbufs=4096"]);
    let path = format!("/run/{name}");
    let output = File::create(&path)?;
    command.env("LD_PRELOAD", "/vft/lib/libwitness.so").env("VFT_WITNESS", WITNESS);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut child = command.spawn().context("cannot start dpdk-testpmd")?;
    let ended = drive(lab, preloaded, &mut child, &path);
    let text = fs::read_to_string(&path)?;
    text.lines().for_each(|line| lab.report.log(name, line));
    let witnessed = fs::read_to_string(WITNESS).unwrap_or_default();
    witnessed.lines().for_each(|line| lab.report.log("witness", line));
    let status = ended?;
    let clean = status.success() && text.contains("Bye...");
    lab.report.expect(Check::CleanEnds, clean, &format!("{status}"));
    witness::parse(&witnessed)
}

/// Waits until packets have gone round, and ends it as a user does.
fn drive(lab: &Lab, preloaded: bool, child: &mut Child, output: &str) -> Result<ExitStatus> {
    let received = wait_for("packets", lab.wait(), || {
        if let Some(status) = child.try_wait()? {
            bail!("dpdk-testpmd ended before: {status}");
        }
        let received = received(&fs::read_to_string(output)?);
        let enough = received.len() == lab.job.devices.len() && received.iter().all(|n| *n >= PACKETS);
        Ok(match enough {
            true => Seen::Done(received),
            false => Seen::NotYet(format!("{received:?} packets received")),
        })
    });
    let check = if preloaded { Check::PacketsPreloaded } else { Check::PacketsWithout };
    let seen = match &received {
        Ok(received) => format!("{received:?} packets received"),
        Err(error) => error.to_string(),
    };
    lab.report.expect(check, received.is_ok(), &seen);
    let pid = Pid::from_child(child);
    kill_process(pid, Signal::INT).context("cannot interrupt dpdk-testpmd")?;
    let ended = wait_for("the end of dpdk-testpmd", lab.wait(), || {
        Ok(Seen::of(child.try_wait()?, || "it runs".to_owned()))
    });
    if ended.is_err() {
        child.kill()?;
    }
    ended
}

/// The packets that each port has received, according to the last statistics.
fn received(text: &str) -> Vec<u64> {
    let mut found = Vec::new();
    for part in text.split("NIC statistics for port ").skip(1) {
        let Some((port, rest)) = part.split_once(' ') else { continue };
        let packets = rest.split_once("RX-packets: ").and_then(|(_, rest)| rest.split_whitespace().next());
        let (Ok(port), Some(Ok(packets))) = (port.parse::<usize>(), packets.map(str::parse)) else {
            continue;
        };
        found.resize(found.len().max(port + 1), 0);
        found[port] = packets;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::received;

    #[test]
    fn the_last_statistics_count() {
        let port = |n, packets| {
            format!(
                "  ######################## NIC statistics for port {n}  ########################\n\
                 \x20 RX-packets: {packets}         RX-missed: 0          RX-bytes:  64\n  TX-packets: 7\n"
            )
        };
        let text = [port(0, 5), port(1, 6), port(0, 70), port(1, 80)].concat();
        assert_eq!(received(&text), [70, 80]);
        assert_eq!(received("EAL: Detected CPU lcores: 2\n"), [0; 0]);
    }
}
