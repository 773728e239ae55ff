//! What one boot of L2 does. L1 writes it as JSON into a word of L2's kernel command line.

use serde::{Deserialize, Serialize};

/// The kernel option that has the job.
pub const OPTION: &str = "vft.job";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum L2Job {
    /// Nothing: L2 reports what happens to it.
    Idle,
    /// Moves data through NVMe disks.
    Disk(DiskJob),
    /// Writes and reads a part of the first disk again and again.
    Stream(DiskJob),
    /// Reads the first disk.
    Read(DiskJob),
    /// Moves data between L2's memory and a BAR, through another device.
    Peer { image_seed: u64, write_seed: u64 },
    /// Lets a device write to memory, and compares each time that it was migrated, so many times. The seed is that of the
    /// memory that the device does not write to.
    Migration { seed: u64, times: u32 },
    /// Lets `edu` devices access what L1 orders. The seed is that of the bytes.
    Attack { seed: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskJob {
    /// Seed of what is on the disk at first.
    pub image_seed: u64,
    /// Seed of what L2 writes.
    pub write_seed: u64,
    pub disk_mib: u64,
    /// The part of L2's memory over which buffers are spread.
    pub spread_mib: u64,
    /// Memory that is being plugged while L2 boots: L2 waits until it has this much.
    pub memory_mib: Option<u64>,
    /// The size of a second disk, which L2 writes and reads as a whole.
    pub second_mib: Option<u64>,
}

impl L2Job {
    /// The word of the kernel command line.
    pub fn to_option(&self) -> String {
        let json = serde_json::to_string(self).expect("a job has only string keys");
        format!("{OPTION}={json}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_one_word_that_reads_back() {
        let disk = DiskJob {
            image_seed: u64::MAX,
            write_seed: 1,
            disk_mib: 64,
            spread_mib: 2304,
            memory_mib: None,
            second_mib: Some(1),
        };
        for job in [
            L2Job::Idle,
            L2Job::Disk(disk.clone()),
            L2Job::Stream(disk),
            L2Job::Peer { image_seed: 1, write_seed: 2 },
            L2Job::Migration { seed: 3, times: 1 },
            L2Job::Attack { seed: 4 },
        ] {
            let option = job.to_option();
            assert!(!option.contains(char::is_whitespace), "{option}");
            let (name, json) = option.split_once('=').unwrap();
            assert_eq!(name, OPTION);
            assert_eq!(serde_json::from_str::<L2Job>(json).unwrap(), job);
        }
    }
}
