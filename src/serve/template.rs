//! Conversations as prompts: the model's chat template, rendered as Hugging Face transformers does.

use std::fmt::Write;

use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value, context, syntax::SyntaxConfig};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::{error::one_line, model::ChatTemplate};

/// Instructions that a template may take. Templates of models take some thousands.
const FUEL: u64 = 10_000_000;

/// Name of the template in its environment, without an extension that would turn on escaping.
const NAME: &str = "chat";

/// A message of a conversation.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub(crate) struct Message {
    pub role: String,
    pub content: String,
}

/// How conversations become prompts.
#[derive(Debug)]
pub enum Template {
    /// For models without a template: each message on a line after its role, and `assistant:` at the end.
    Plain,
    /// The template of a model.
    Jinja(Box<Jinja>),
    /// The model's template can't be used, for this reason. Only chats are refused.
    Unusable(String),
}

/// A compiled template.
#[derive(Debug)]
pub struct Jinja {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl Template {
    /// Compiles the template of a model, or chooses the plain one.
    pub fn new(template: Option<ChatTemplate>) -> Self {
        let Some(ChatTemplate { source, bos_token, eos_token }) = template else { return Self::Plain };
        let mut environment = Environment::new();
        // As transformers sets up Jinja.
        if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
            environment.set_syntax(syntax);
        }
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        match environment.add_template_owned(NAME, source) {
            Ok(()) => Self::Jinja(Box::new(Jinja { environment, bos_token, eos_token })),
            Err(error) => Self::Unusable(format!("the model's chat template: {}", one_line(&error))),
        }
    }

    /// The prompt of a conversation, and whether the tokenizer adds its special tokens to it, which templates write
    /// themselves.
    ///
    /// # Errors
    /// If the template refuses the conversation, for example because roles do not alternate.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<(String, bool), String> {
        match self {
            Self::Plain => {
                let mut text = String::new();
                for Message { role, content } in messages {
                    let _ = writeln!(text, "{role}: {content}");
                }
                Ok((text + "assistant:", true))
            }
            Self::Jinja(jinja) => jinja.render(messages).map(|text| (text, false)).map_err(|error| {
                let detail = error.detail().map(str::to_owned).unwrap_or_else(|| error.to_string());
                format!("the model's chat template refuses the messages: {}", one_line(&detail))
            }),
            Self::Unusable(reason) => Err(reason.clone()),
        }
    }
}

impl Jinja {
    fn render(&self, messages: &[Message]) -> Result<String, Error> {
        let value = |message: &Message| context! { role => &message.role, content => &message.content };
        self.environment.get_template(NAME)?.render(context! {
            messages => messages.iter().map(value).collect::<Vec<Value>>(),
            add_generation_prompt => true,
            bos_token => &self.bos_token,
            eos_token => &self.eos_token,
        })
    }
}

/// The time now, in the format of C's strftime.
fn strftime_now(format: String) -> Result<String, Error> {
    let mut text = String::new();
    // A wrong format is an error of `write`, where `to_string` would panic.
    write!(text, "{}", chrono::Utc::now().format(&format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "strftime_now: the format is wrong"))?;
    Ok(text)
}
