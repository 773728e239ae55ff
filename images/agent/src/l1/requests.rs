//! Requests that only the guest can fulfil, made the way management software makes them: a guest may
//! miss one, so it is sent again until it is fulfilled or the budget is spent. Each repetition is
//! recorded.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::json;
use vfio_fast_protocol::record::Record;

use crate::l1::lab::Lab;
use crate::l1::qmp::Refusal;
use crate::l1::vm::Vm;

/// A guest that has not complied after this time is asked again. An emulated one needs a few seconds.
const AGAIN_AFTER: Duration = Duration::from_secs(20);

/// QEMU refuses a second `device_del` with these while the first is being worked on.
const PENDING: [&str; 3] = [
    "is already in the process of unplug",
    "guest is busy (power indicator blinking)",
    "guest is still powering up",
];

/// Asks the guest to release a device, and waits until QEMU has deleted it.
pub fn unplug(lab: &Lab, vm: &mut Vm, id: &str) -> Result<()> {
    let cause = format!("device_del {id}");
    repeat(
        lab,
        &cause,
        vm,
        |vm, repeated| match vm.qmp.attempt("device_del", json!({ "id": id }))? {
            Ok(_) => Ok(()),
            Err(refusal) if repeated && is_harmless(&refusal) => Ok(()),
            Err(Refusal(text)) => bail!("QEMU refuses {cause}: {text}"),
        },
        |vm, within| {
            let deleted = vm.qmp.event_within("DEVICE_DELETED", within, |data| data["device"] == id)?;
            Ok(match deleted {
                Some(_) => Progress::Fulfilled(()),
                None => Progress::Pending(format!("no DEVICE_DELETED, {}", vm.qmp.events_seen())),
            })
        },
    )
}

/// What the guest has done about a request.
pub enum Progress<T> {
    Fulfilled(T),
    /// Not all of it; the text describes the state.
    Pending(String),
}

/// Sends a request with `send`, whose second argument is true for a repetition, and then lets `wait`
/// wait for the guest to fulfil it, at most for the given time. Sends it again if the guest has not,
/// as often as the lab's wait allows.
pub fn repeat<C, T>(
    lab: &Lab,
    cause: &str,
    context: &mut C,
    send: impl FnMut(&mut C, bool) -> Result<()>,
    wait: impl FnMut(&mut C, Duration) -> Result<Progress<T>>,
) -> Result<T> {
    let attempts = lab.wait().as_secs().div_ceil(AGAIN_AFTER.as_secs());
    let again = || lab.report.send(&Record::Retry { cause: cause.to_owned() });
    attempt(cause, attempts, context, send, wait, again)
}

fn attempt<C, T>(
    cause: &str,
    attempts: u64,
    context: &mut C,
    mut send: impl FnMut(&mut C, bool) -> Result<()>,
    mut wait: impl FnMut(&mut C, Duration) -> Result<Progress<T>>,
    again: impl Fn(),
) -> Result<T> {
    ensure!(attempts > 0, "{cause}: no time to wait for the guest");
    let mut state = String::new();
    for n in 0..attempts {
        if n > 0 {
            again();
        }
        send(context, n > 0)?;
        match wait(context, AGAIN_AFTER)? {
            Progress::Fulfilled(value) => return Ok(value),
            Progress::Pending(now) => state = now,
        }
    }
    let seconds = attempts * AGAIN_AFTER.as_secs();
    bail!("{cause}: sent {attempts} times in {seconds} s, and the guest did not comply; seen last: {state}")
}

/// Whether a repeated `device_del` may be refused so: the first one is pending, or has been fulfilled.
fn is_harmless(Refusal(text): &Refusal) -> bool {
    text.ends_with("not found") || PENDING.iter().any(|pending| text.contains(pending))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Fulfils the request of that number, counted from 1; the result, the requests and the repetitions.
    fn guest(fulfils: u64, attempts: u64) -> (Result<u64>, u64, u64) {
        let (mut sent, repeated) = (0, Cell::new(0));
        let result = attempt(
            "device_del dut",
            attempts,
            &mut sent,
            |sent, repetition| {
                assert_eq!(repetition, *sent > 0);
                *sent += 1;
                Ok(())
            },
            |sent, within| {
                assert_eq!(within, AGAIN_AFTER);
                let done = *sent == fulfils;
                Ok(if done {
                    Progress::Fulfilled(*sent)
                } else {
                    Progress::Pending(format!("{sent} missed"))
                })
            },
            || repeated.set(repeated.get() + 1),
        );
        (result, sent, repeated.get())
    }

    #[test]
    fn a_missed_request_is_sent_again_and_counted() {
        let (result, sent, repeated) = guest(1, 15);
        assert_eq!((result.unwrap(), sent, repeated), (1, 1, 0));
        let (result, sent, repeated) = guest(3, 15);
        assert_eq!((result.unwrap(), sent, repeated), (3, 3, 2));
    }

    #[test]
    fn the_budget_is_kept() {
        let (result, sent, repeated) = guest(4, 3);
        assert_eq!((sent, repeated), (3, 2));
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with("device_del dut: sent 3 times in 60 s"), "{error}");
        assert!(error.ends_with("seen last: 3 missed"), "{error}");
        assert!(guest(1, 0).0.is_err());
    }

    #[test]
    fn only_a_pending_request_may_be_refused() {
        let harmless = |text: &str| is_harmless(&Refusal(text.to_owned()));
        assert!(harmless("Device dut is already in the process of unplug"));
        assert!(harmless("Hot-unplug failed: guest is busy (power indicator blinking)"));
        assert!(harmless("Device 'dut' not found"));
        assert!(!harmless("Hot-unplug failed: unsupported by the port device 'rp0'"));
    }
}
