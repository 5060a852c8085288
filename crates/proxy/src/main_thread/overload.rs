//! Measures pressure and switches the actions of the overload manager.
use std::sync::Arc;

use lateen_snapshot::bootstrap::overload::Action;
use lateen_telemetry::envoy_names::overload as names;
use lateen_telemetry::{Block, BlockName};

use super::{Main, figures, memory};

/// Runs only where actions are configured.
pub(super) async fn run(main: Arc<Main>) {
    let overload = &main.bootstrap.overload;
    let Some(most) = overload.heap.filter(|_| !overload.actions.is_empty()) else { return };
    let blocks: Vec<Block> = overload
        .actions
        .iter()
        .map(|(action, _)| main.registry.block(names::DEFS, BlockName::plain(&format!("overload.{}", action.name()))))
        .collect();
    loop {
        let pressure = figures::Pages::now().resident_bytes() as f64 / most as f64;
        for ((action, at), block) in overload.actions.iter().zip(&blocks) {
            let active = pressure >= *at;
            block.set(names::ACTIVE, u64::from(active));
            if main.overload.set(*action, active) {
                tracing::warn!(pressure, "{}: {}", action.name(), if active { "begins" } else { "ends" });
            }
            if active && *action == Action::ShrinkHeap {
                memory::trim();
            }
        }
        tokio::time::sleep(overload.refresh).await;
    }
}
