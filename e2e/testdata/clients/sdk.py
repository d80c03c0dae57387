# sdk.py LIBRARY: asks one thing, with what the environment says and nothing else; what the library raises ends the program.
import sys

ask = [{"role": "user", "content": "hello"}]
if sys.argv[1] == "anthropic":
    import anthropic

    print(anthropic.Anthropic().messages.create(model="demo", max_tokens=16, messages=ask).content[0].text)
else:
    import openai

    print(openai.OpenAI().chat.completions.create(model="demo", messages=ask).choices[0].message.content)
