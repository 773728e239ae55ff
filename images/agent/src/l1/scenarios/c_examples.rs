//! The examples for C programs, with the disk under test: what they read is what the host wrote to its image.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use vfio_fast_protocol::job::{Container, DiskLayout};
use vfio_fast_protocol::scenarios::c_examples::Check;
use vfio_fast_protocol::test_data;

use crate::l1::lab::Lab;

const BLOCK: u64 = 512;
/// The pages of 2 MiB that are mapped.
const PAGES: u64 = 64;
/// What precedes the counts of the transaction, in what the second program prints.
const TRANSACTION: &str = "the library, one transaction";

pub fn run(lab: &Lab) -> Result<()> {
    let blocks = (lab.job.disk_mib << 20) / BLOCK;
    // One block, parts of two pages, more pages than fit into the command itself, all.
    let parts = [(0, 1), (3, 9), (blocks - 25, 25), (0, blocks)];
    let mut problems = Vec::new();
    for (first, count) in parts {
        let output = start(lab, "nvme_read", &[first.to_string(), count.to_string()])?;
        let bytes = &output.stdout;
        if !output.status.success() || bytes.len() as u64 != count * BLOCK {
            problems.push(format!("{count} blocks from {first}: {}, {} bytes", output.status, bytes.len()));
        } else if let Some(at) = first_difference(lab, first * BLOCK, bytes) {
            problems.push(format!("{count} blocks from {first}: another byte than the image's at {at}"));
        }
    }
    let seen = format!("{} parts, one of them the whole disk of {blocks} blocks", parts.len());
    lab.report.check(Check::ReadsWhatTheDiskHolds, &problems, &seen);

    let beyond = start(lab, "nvme_read", &[(blocks - 1).to_string(), "2".to_owned()])?;
    let refused = beyond.status.code() == Some(1) && beyond.stdout.is_empty();
    lab.report.expect(Check::BlocksBeyondTheEndRefused, refused, &beyond.status.to_string());

    let pages = start(lab, "many_pages", &["--pages".to_owned(), PAGES.to_string()])?;
    let text = String::from_utf8_lossy(&pages.stdout);
    // One call and one entry: all pages lie below 1 GiB, and an entry ends at a multiple of that.
    let one = text.lines().filter_map(|line| line.strip_prefix(TRANSACTION)).any(|counts| {
        let mut counts = counts.split_whitespace();
        counts.next() == Some("1") && counts.next() == Some("1")
    });
    let last = text.lines().last().unwrap_or_default();
    lab.report.expect(Check::OneEntryForManyPages, pages.status.success() && one, last);
    Ok(())
}

/// Where the bytes at `offset` of the disk are not those of its image, the last part of which is zeros.
fn first_difference(lab: &Lab, offset: u64, bytes: &[u8]) -> Option<u64> {
    let data = DiskLayout::of_mib(lab.job.disk_mib).state_offset().saturating_sub(offset);
    let (data, zeros) = bytes.split_at(bytes.len().min(data as usize));
    let in_zeros = || Some(offset + (data.len() + zeros.iter().position(|byte| *byte != 0)?) as u64);
    test_data::first_difference(lab.job.image_seed, offset, data).or_else(in_zeros)
}

/// Runs a program with the device under test; what it prints is also in the log of its name.
fn start(lab: &Lab, program: &str, arguments: &[String]) -> Result<Output> {
    let mut command = Command::new(format!("/vft/lib/{program}"));
    if lab.job.container == Container::Iommufd {
        command.arg("--iommufd");
    }
    match program {
        "nvme_read" => command.arg(&lab.job.devices[0]).args(arguments),
        _ => command.args(arguments).arg(&lab.job.devices[0]),
    };
    command.env("LD_LIBRARY_PATH", "/vft/lib").stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let log = program.replace('_', "-");
    lab.report.log(&log, &format!("{command:?}: {}", output.status));
    String::from_utf8_lossy(&output.stderr).lines().for_each(|line| lab.report.log(&log, line));
    if program == "many_pages" {
        String::from_utf8_lossy(&output.stdout).lines().for_each(|line| lab.report.log(&log, line));
    }
    Ok(output)
}
