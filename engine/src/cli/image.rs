//! `slipway image`: images of a root that no engine works on.

use anyhow::Context;
use image_store::{ImageStore, StoreOptions};
use serde_json::json;

use super::{ImageCommand, PlaceArgs};
use crate::config;

/// Runs one of the commands.
pub(super) fn run(command: ImageCommand) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(async {
        match command {
            ImageCommand::Import {
                places,
                path,
                name,
                json,
            } => {
                let ids = open(places).await?.import(&path, name.as_deref()).await?;
                let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
                if json {
                    println!("{}", json!(ids));
                } else {
                    ids.iter().for_each(|id| println!("{id}"));
                }
            }
            ImageCommand::List { places, json } => list(&open(places).await?, json),
        }
        Ok(())
    })
}

fn list(store: &ImageStore, as_json: bool) {
    let images = store.list();
    if as_json {
        let entries: Vec<_> = images
            .iter()
            .map(|image| {
                json!({
                    "id": image.id.to_string(),
                    "tags": image.tags,
                    "digests": image.digests,
                    "size": image.size,
                })
            })
            .collect();
        println!("{}", json!(entries));
        return;
    }
    for image in images {
        let names = if image.tags.is_empty() {
            &image.digests
        } else {
            &image.tags
        };
        println!("{}  {} bytes  {}", image.id, image.size, names.join(" "));
    }
}

async fn open(places: PlaceArgs) -> anyhow::Result<ImageStore> {
    let config = config::load(&places.places())?;
    ImageStore::open(StoreOptions {
        root: config.root.clone(),
        hosts_dir: config.registry_config_path.clone(),
        user_agent: concat!("slipway/", env!("CARGO_PKG_VERSION")).to_owned(),
    })
    .await
    .with_context(|| {
        format!(
            "open the images of {} (is an engine running on it?)",
            config.root.display()
        )
    })
}
