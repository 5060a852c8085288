//! Path templates such as `/shops/{shop}/items/*` (Envoy's URI templates): matching, and rewriting by what was matched.
use regex::Regex;

/// Variables of one template.
const MOST_VARIABLES: usize = 5;
/// Letters of a variable's name.
const LONGEST_NAME: usize = 16;
/// What a segment may be written with, as a class of an expression: RFC 3986's `pchar` without `*` and `=`.
const SEGMENT: &str = "a-zA-Z0-9._~%!$&'()+,;:@-";

/// A compiled template.
#[derive(Debug, Clone)]
pub struct PathTemplate {
    /// Anchored; a group for each variable, by its name.
    pattern: Regex,
}

/// What a matched path becomes.
#[derive(Debug, Clone)]
pub struct PathTemplateRewrite(Vec<Part>);

#[derive(Debug, Clone)]
enum Part {
    Text(Box<str>),
    Variable(Box<str>),
}

/// Reads a template from left to right.
struct Reader<'a> {
    rest: &'a str,
    pattern: String,
    variables: Vec<&'a str>,
    /// `**` was seen: nothing that varies may follow.
    open_ended: bool,
}

impl PathTemplate {
    /// Reads `/text`, `*` for one segment, `**` for any number (only as the last that varies), `{name}` and `{name=a/*}`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn compile(template: &str) -> Result<Self, String> {
        let rest = template.strip_prefix('/').ok_or("must begin with a slash")?;
        let mut reader = Reader { rest, pattern: r"\A/".to_owned(), variables: Vec::new(), open_ended: false };
        while !reader.rest.is_empty() {
            reader.segment()?;
            match reader.rest.strip_prefix('/') {
                Some(rest) => {
                    reader.rest = rest;
                    reader.pattern.push('/');
                }
                None => reader.suffix()?,
            }
        }
        let pattern = reader.pattern + r"\z";
        Regex::new(&pattern).map(|pattern| Self { pattern }).map_err(|e| e.to_string())
    }

    /// Whether all of the path, given without its query, has this form.
    pub fn matches(&self, path: &str) -> bool {
        self.pattern.is_match(path)
    }
}

impl<'a> Reader<'a> {
    fn segment(&mut self) -> Result<(), String> {
        match self.rest.as_bytes().first() {
            Some(b'*') => self.operator(),
            Some(b'{') => self.variable(),
            _ => self.text(),
        }
    }

    /// Text right behind `*` or a variable ends the template.
    fn suffix(&mut self) -> Result<(), String> {
        if self.rest.is_empty() {
            return Ok(());
        }
        self.text()?;
        if self.rest.is_empty() { Ok(()) } else { Err("text behind `*` or `}` must be the end".to_owned()) }
    }

    fn operator(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.open_ended) {
            return Err("nothing that varies may follow `**`".to_owned());
        }
        match self.rest.strip_prefix("**") {
            Some(rest) => {
                self.rest = rest;
                self.open_ended = true;
                self.pattern.push_str(&format!("[/{SEGMENT}]*"));
            }
            None => {
                self.rest = self.rest.strip_prefix('*').unwrap_or(self.rest);
                self.pattern.push_str(&format!("[{SEGMENT}]+"));
            }
        }
        Ok(())
    }

    fn text(&mut self) -> Result<(), String> {
        let (text, rest) = self.rest.split_at(self.rest.find('/').unwrap_or(self.rest.len()));
        if text.is_empty() || !text.bytes().all(is_segment) {
            return Err(format!("`{text}` is no segment of a path"));
        }
        self.pattern.push_str(&regex::escape(text));
        self.rest = rest;
        Ok(())
    }

    fn variable(&mut self) -> Result<(), String> {
        let inside = self.rest.strip_prefix('{').unwrap_or(self.rest);
        let (inside, rest) = inside.split_once('}').ok_or("a `{` has no `}`")?;
        let (name, form) = inside.split_once('=').map_or((inside, None), |(name, form)| (name, Some(form)));
        check_name(name)?;
        if self.variables.contains(&name) {
            return Err(format!("the variable `{name}` occurs twice"));
        }
        if self.variables.len() == MOST_VARIABLES {
            return Err(format!("has more than {MOST_VARIABLES} variables"));
        }
        self.variables.push(name);
        self.pattern.push_str(&format!("(?P<{name}>"));
        self.rest = form.unwrap_or("*");
        loop {
            if self.rest.starts_with('*') {
                self.operator()?
            } else {
                self.text()?
            }
            if self.rest.is_empty() {
                break;
            }
            self.rest = self.rest.strip_prefix('/').ok_or_else(|| format!("`{name}` mixes text and `*` in one segment"))?;
            self.pattern.push('/');
        }
        self.pattern.push(')');
        self.rest = rest;
        Ok(())
    }
}

fn is_segment(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._~%!$&'()+,;:@-".contains(&byte)
}

fn check_name(name: &str) -> Result<(), String> {
    let is_word = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !is_word {
        return Err(format!("`{name}` is no name of a variable"));
    }
    if name.len() > LONGEST_NAME {
        return Err(format!("the variable `{name}` has more than {LONGEST_NAME} letters"));
    }
    Ok(())
}

impl PathTemplateRewrite {
    /// Reads text with `{name}` for what the variable of `matched` stands for.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn compile(text: &str, matched: &PathTemplate) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err("must begin with a slash".to_owned());
        }
        if text.contains("//") {
            return Err("has two slashes in a row".to_owned());
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let (literal, variable) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
            if !literal.bytes().all(|b| is_segment(b) || b == b'/') {
                return Err(format!("`{literal}` is no part of a path"));
            }
            if !literal.is_empty() {
                parts.push(Part::Text(literal.into()));
            }
            let Some(variable) = variable.strip_prefix('{') else { break };
            let (name, after) = variable.split_once('}').ok_or("a `{` has no `}`")?;
            if !matched.pattern.capture_names().flatten().any(|known| known == name) {
                return Err(format!("path_match_policy has no variable `{name}`"));
            }
            parts.push(Part::Variable(name.into()));
            rest = after;
        }
        Ok(Self(parts))
    }

    /// The new path; `None` for a path that the template does not match.
    pub fn apply(&self, matched: &PathTemplate, path: &str) -> Option<String> {
        let captures = matched.pattern.captures(path)?;
        let mut out = String::with_capacity(path.len());
        for part in &self.0 {
            out.push_str(match part {
                Part::Text(text) => text,
                Part::Variable(name) => captures.name(name).map_or("", |m| m.as_str()),
            });
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_whole_paths() {
        for (template, yes, no) in [
            ("/a/b", &["/a/b"][..], &["/a/b/", "/a/bc", "/x/a/b"][..]),
            ("/a/*", &["/a/b", "/a/b.c"], &["/a/", "/a", "/a/b/c"]),
            ("/a/**", &["/a/", "/a/b", "/a/b/c"], &["/a", "/ab"]),
            ("/**", &["/", "/a/b"], &[]),
            ("/a/{x}/c", &["/a/b/c"], &["/a/b/b/c", "/a//c"]),
            ("/a/{x=b/*}/d", &["/a/b/c/d"], &["/a/c/c/d"]),
            ("/{x=**}", &["/", "/a/b"], &[]),
            ("/a/{f}.vtt", &["/a/b.vtt"], &["/a/b.txt", "/a/.vtt"]),
            ("/a/", &["/a/"], &["/a"]),
            ("/a.b", &["/a.b"], &["/axb"]),
            ("/**/end", &["/a/end", "/a/b/end"], &["/end/a"]),
        ] {
            let compiled = PathTemplate::compile(template).unwrap();
            yes.iter().for_each(|path| assert!(compiled.matches(path), "{template} {path}"));
            no.iter().for_each(|path| assert!(!compiled.matches(path), "{template} {path}"));
        }
    }

    #[test]
    fn what_is_no_template_is_told() {
        let bad = [
            "",
            "a",
            "/a/**/*",
            "/a/**/{x}",
            "/{x}/{x}",
            "/{1x}",
            "/{x",
            "/{x=}",
            "/a b",
            "/a//b",
            "/*a/b",
            "/{abcdefghijklmnopq}",
            "/{x=a*}",
            "/{a}/{b}/{c}/{d}/{e}/{f}",
        ];
        for template in bad {
            assert!(PathTemplate::compile(template).is_err(), "{template}");
        }
    }

    #[test]
    fn variables_go_into_the_new_path() {
        let template = PathTemplate::compile("/content/{format}/{lang}/{id}/{file}.vtt").unwrap();
        let rewrite = PathTemplateRewrite::compile("/{lang}/{format}/{file}.vtt", &template).unwrap();
        assert_eq!(rewrite.apply(&template, "/content/hls/en-us/12345/en_193913.vtt").as_deref(), Some("/en-us/hls/en_193913.vtt"));
        assert_eq!(rewrite.apply(&template, "/other"), None);
        for bad in ["a", "/{nobody}", "/a//b", "/{lang", "/*"] {
            assert!(PathTemplateRewrite::compile(bad, &template).is_err(), "{bad}");
        }
    }
}
