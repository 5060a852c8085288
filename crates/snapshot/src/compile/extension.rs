//! Filters whose configuration is discovered: the place for one, and the configuration when it comes.
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::{Any, any};

use super::context::{Context, ExtensionUse, Place};
use super::invalid::{Invalid, Result, Within};
use super::{filter, listener_filter, network, opaque, source};
use crate::extension::{DiscoveredFilter, Extension, Sides};

/// A filter that is discovered by its own name; `compile` takes a configuration of its kind.
pub(crate) fn place<T>(
    name: &str,
    value: core::ExtensionConfigSource,
    place: Place,
    context: &mut Context<'_>,
    compile: impl FnOnce(&str, &Any, &mut Context<'_>) -> Result<T>,
) -> Result<DiscoveredFilter<T>> {
    let core::ExtensionConfigSource { config_source, default_config, apply_default_config_without_warming, type_urls } = value;
    if name.is_empty() {
        return Err(Invalid::new("needs a name of the filter, by which it is discovered"));
    }
    let timeout = source::ads_only(config_source).within("config_source")?;
    if type_urls.is_empty() {
        return Err(Invalid::field("type_urls", "is empty; name the types that the filter may have"));
    }
    let types: Vec<Box<str>> = type_urls.iter().map(|url| any::name_of(url).into()).collect();
    let default = default_config.map(|config| {
        let config = opaque::typed(config)?;
        check_type(name, &config, &types).and_then(|()| compile(name, &config, context))
    });
    let default = default.transpose().within("default_config")?;
    if apply_default_config_without_warming && default.is_none() {
        return Err(Invalid::field("apply_default_config_without_warming", "needs a default_config"));
    }
    let id = context.names.extension(name);
    let waits = (!apply_default_config_without_warming).then_some(timeout);
    context.uses.extensions.push(ExtensionUse { name: name.into(), types: types.clone(), place, waits });
    Ok(DiscoveredFilter::new(id, types, default))
}

fn check_type(name: &str, config: &Any, types: &[Box<str>]) -> Result<()> {
    let type_name = any::name_of(&config.type_url);
    if types.iter().any(|t| **t == *type_name) {
        return Ok(());
    }
    Err(Invalid::new(format!("{name} has type {type_name}, which is not in type_urls")))
}

/// A configuration that was discovered, for the places of `wanted`.
pub(crate) fn extension(
    value: core::TypedExtensionConfig,
    wanted: &[(Place, Vec<Box<str>>)],
    context: &mut Context<'_>,
) -> Result<Extension> {
    let core::TypedExtensionConfig { name, typed_config } = value;
    let config = opaque::typed(typed_config.ok_or_else(|| Invalid::field("typed_config", "is missing"))?)?;
    wanted.iter().try_for_each(|(_, types)| check_type(&name, &config, types))?;
    let is_for = |place: Place| wanted.iter().any(|(p, _)| *p == place);
    let mut made = Extension { type_name: any::name_of(&config.type_url).into(), ..Extension::default() };
    if is_for(Place::Http) {
        made.http = Some(sides(context, |context| filter::discovered(&name, &config, context))?);
    }
    if is_for(Place::Network) {
        made.network = Some(sides(context, |context| network::discovered(&name, &config, context))?);
    }
    if is_for(Place::Terminal) {
        made.terminal = Some(sides(context, |context| network::discovered_terminal(&name, &config, context))?);
    }
    if is_for(Place::Inspection) {
        made.inspection = Some(listener_filter::inspection(&name, &config)?);
    }
    Ok(made)
}

fn sides<T>(context: &mut Context<'_>, mut compile: impl FnMut(&mut Context<'_>) -> Result<T>) -> Result<Sides<T>> {
    context.source = false;
    let inbound = compile(context)?;
    context.source = true;
    Ok(Sides { inbound, source: compile(context)? })
}
