//! `inspect`: what an image is, for people or as JSON. Needs no KVM and writes nothing anywhere.

use std::path::Path;

use anyhow::{Context, Result};

use bivisor::payload::describe::Description;
use bivisor::payload::image::{Image, Unpacking};
use bivisor::payload::{BadImage, Payload};

use crate::cli::print;

/// Our choice: no kernel is as large, and a bomb ends here.
const LIMIT: u64 = 1 << 30;

/// Prints what the file at `path` is.
pub fn print_description(path: &Path, json: bool) -> Result<u8> {
    let name = path.display().to_string();
    let payload = Payload::open(path).context(name.clone())?;
    let size = payload.len();
    let unpacking = Unpacking { limit: LIMIT, cache: None, kernels: true };
    let described = Image::read(payload, &unpacking).and_then(|image| Description::of(&image));
    let described = described.map_err(|error| match error.downcast::<BadImage>() {
        Ok(bad) => anyhow::Error::new(BadImage(format!("{name}: {bad}"))),
        Err(error) => error.context(name.clone()),
    })?;
    if !json {
        return print(described.table(&name, size));
    }
    let mut object = serde_json::to_value(&described)?;
    object["file"] = name.into();
    object["size"] = size.into();
    object["details"] = described
        .details
        .into_iter()
        .map(|(k, v)| (k.into(), v.into()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    object["runs_here"] = described.refused.is_none().into();
    print(format!("{object}\n"))
}
