//! `lateen app`: the built-in sample service, its load generator and its small curl.

/// The options; see `lateen app --help`.
pub(crate) use lateen_app::AppArgs as Args;

/// Serves, loads or gets, as the options say.
///
/// # Errors
/// When a port is taken, an address is wrong, or nothing answered.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    lateen_core::memory::share_one_heap();
    lateen_core::memory::settle_after(super::SETTLED);
    lateen_app::run(args)
}
