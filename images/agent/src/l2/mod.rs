//! L2: real DMA. Reads the known image through the passthrough disk and compares it, writes data
//! the host compares later, and does so into memory spread over all of L2.

mod attack;
mod disk;
mod edu;
mod migration;
mod mmio;
mod peer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use vfio_fast_protocol::l2_job::{self, L2Job};
use vfio_fast_protocol::record::{Event, L2_PORT};

use crate::machine::{self, KernelLog};
use crate::pagemap::Pagemap;

/// Runs L2 until the machine is reset or stopped from outside.
pub fn run(options: &BTreeMap<String, String>) -> Result<()> {
    machine::load_modules()?;
    let mut port = machine::open_port(L2_PORT)?;
    let mut messages = KernelLog::open()?;
    let text = options.get(l2_job::OPTION).context("the kernel command line has no job")?;
    let job: L2Job = serde_json::from_str(text).with_context(|| format!("cannot read the job `{text}`"))?;
    let outcome = match &job {
        L2Job::Idle => Ok(0),
        L2Job::Disk(job) => disk::work(job, &mut port),
        L2Job::Stream(job) => disk::stream(job, &mut port, |port| send_messages(&mut messages, port)),
        L2Job::Read(job) => disk::read(job, &mut port).map(|()| 0),
        L2Job::Peer { image_seed, write_seed } => peer::work(*image_seed, *write_seed, &mut port),
        L2Job::Migration { seed, times } => migration::work(*seed, *times, &mut port),
        L2Job::Attack { seed } => attack::work(*seed, &mut port, |port| send_messages(&mut messages, port)),
    };
    send_messages(&mut messages, &mut port)?;
    match outcome {
        Ok(boot) => send(&mut port, &Event::Ready { boot })?,
        Err(error) => send(&mut port, &Event::Failed { error: format!("{error:#}") })?,
    }
    // L1 resets, unplugs or stops this machine now; the kernel's messages about that count too.
    let mut memory = 0;
    let mut disks = disk::present();
    loop {
        send_messages(&mut messages, &mut port)?;
        let present = disk::present();
        if disks != present {
            if let L2Job::Disk(job) = &job
                && let Err(error) = disk::again(job, &present, &mut port)
            {
                send(&mut port, &Event::Failed { error: format!("{error:#}") })?;
            }
            disks = present;
        }
        let now = machine::memory_mib();
        if memory != now {
            memory = now;
            send(&mut port, &Event::Memory { mib: now })?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn send_messages(messages: &mut KernelLog, port: &mut File) -> Result<()> {
    messages.new_lines()?.into_iter().try_for_each(|line| send(port, &Event::Dmesg { line }))
}

fn send(port: &mut File, event: &Event) -> Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    port.write_all(&line).context("cannot write to the event port")
}

/// The physical address of this process's page at `address`.
fn physical_address(pagemap: &Pagemap, address: u64) -> Result<u64> {
    pagemap.physical(address)?.with_context(|| format!("the page at {address:#x} is not present"))
}
