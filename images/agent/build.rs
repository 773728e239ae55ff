//! Lists the files of src/l1/scenarios.

#[path = "../modules.rs"]
mod modules;

fn main() -> modules::Result<()> {
    // Does not compile unless the protocol has a scenario of that name.
    modules::list("src/l1/scenarios", "", "STORIES: &[(&str, Story)]", |name, _| {
        Ok(format!("(vfio_fast_protocol::scenarios::{name}::NAME, {name}::run)"))
    })
}
