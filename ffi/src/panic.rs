//! Catching panics.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[cfg(panic = "abort")]
compile_error!("a panic must not end the program that loaded this library: build it with panic=unwind");

/// Runs `body`. If it panics, returns the message of the panic.
pub(crate) fn caught<R>(body: impl FnOnce() -> R) -> Result<R, String> {
    // AssertUnwindSafe: the callers poison or drop the state that a panic may have left inconsistent.
    catch_unwind(AssertUnwindSafe(body)).map_err(|payload| {
        let text = message(payload.as_ref());
        // Dropping the payload runs foreign code, which may panic again. The payload of that second panic is leaked.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(again);
        }
        text
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "a panic without a message".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_a_panic_is_kept() {
        assert_eq!(caught(|| 1), Ok(1));
        assert_eq!(caught(|| panic!("fixed")), Err::<(), _>("fixed".to_owned()));
        assert_eq!(caught(|| panic!("number {}", 1)), Err::<(), _>("number 1".to_owned()));
        let other = caught(|| std::panic::panic_any(7));
        assert_eq!(other, Err::<(), _>("a panic without a message".to_owned()));
    }
}
