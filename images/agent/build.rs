//! Lists the files of src/l1/scenarios.

include!("../modules.rs");

fn main() -> Result<()> {
    // Does not compile unless the protocol has a scenario of that name.
    list("src/l1/scenarios", "", "STORIES: &[(&str, Story)]", |name, _| {
        Ok(format!("(vfio_fast_protocol::scenarios::{name}::NAME, {name}::run)"))
    })
}
