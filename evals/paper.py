"""What the paper reports for its own models, in the names of our tasks: Table 14, and what training
labelers said about prompts sent to InstructGPT (Fig. 1, 30, 31).

    task|prompt|metric|GPT-3|SFT|PPO|PPO-ptx       three numbers each: 1.3B, 6B, 175B

An empty prompt stands for any: our judges of preference are not the paper's people.
The table's rows "instruction" and "QA + instruct" of TruthfulQA have each other's numbers, as the
samples that the authors released show: here they are right. Its row TL;DR repeats CNN/DM and is
left out.
"""
MODELS = ("GPT", "SFT", "PPO", "PPO-ptx")
SIZES = ("1.3B", "6B", "175B")
TABLE = """
winogender|none|entropy|.750 .721 .735|.583 .535 .503|.698 .587 .618|.760 .719 .737
winogender|respectful|entropy|.774 .753 .796|.561 .446 .479|.644 .562 .527|.608 .585 .696
winogender|biased|entropy|.760 .773 .783|.561 .516 .540|.706 .567 .564|.676 .543 .690
crows|none|entropy|.448 .430 .410|.356 .326 .241|.355 .361 .326|.448 .434 .413
crows|respectful|entropy|.419 .413 .362|.302 .260 .204|.281 .258 .270|.310 .273 .243
crows|biased|entropy|.420 .419 .353|.305 .252 .187|.287 .288 .223|.314 .254 .205
toxicity|none|toxicity|.228 .229 .231|.198 .211 .211|.213 .214 .228|.228 .227 .234
toxicity|respectful|toxicity|.211 .232 .233|.196 .196 .199|.198 .176 .205|.179 .204 .196
toxicity|biased|toxicity|.250 .261 .285|.236 .250 .256|.254 .382 .427|.263 .512 .400
truthfulqa|QA|true|.312 .220 .284|.324 .436 .515|.546 .586 .755|.297 .476 .712
truthfulqa|instruction + QA|true|.340 .414 .570|.360 .756 .665|.634 .928 .879|.355 .733 .815
truthfulqa|instruction|true|.335 .348 .438|.517 .659 .852|.807 .760 .944|.322 .494 .610
truthfulqa|QA|true_info|.193 .186 .251|.267 .253 .271|.524 .574 .752|.285 .464 .689
truthfulqa|instruction + QA|true_info|.212 .212 .226|.282 .213 .257|.559 .187 .382|.339 .350 .494
truthfulqa|instruction|true_info|.218 .267 .242|.288 .319 .206|.789 .704 .588|.242 .399 .315
hellaswag|zero-shot|accuracy|.549 .673 .781|.528 .672 .753|.507 .646 .743|.552 .690 .807
hellaswag|few-shot|accuracy|.550 .677 .791|.516 .657 .741|.530 .671 .759|.559 .694 .820
wsc|zero-shot|accuracy|.567 .635 .740|.615 .606 .654|.663 .654 .683|.692 .587 .731
wsc|few-shot|accuracy|.587 .654 .798|.615 .625 .779|.625 .596 .654|.644 .673 .788
rte|zero-shot|accuracy|.527 .617 .563|.487 .516 .570|.480 .708 .704|.538 .657 .668
rte|few-shot|accuracy|.585 .682 .614|.574 .657 .700|.606 .585 .711|.545 .697 .765
sst|zero-shot|accuracy|.592 .616 .898|.873 .888 .907|.817 .820 .920|.812 .901 .900
sst|few-shot|accuracy|.842 .930 .944|.909 .933 .936|.794 .880 .944|.838 .923 .938
quac|zero-shot|f1|32.13 38.19 42.55|34.52 41.19 45.22|29.02 37.64 34.52|35.04 37.35 41.60
quac|few-shot|f1|36.02 41.78 45.38|35.95 43.13 48.77|31.81 40.63 36.00|39.40 42.42 46.99
squad|zero-shot|f1|51.97 58.66 64.30|36.88 46.53 57.67|45.37 47.42 43.68|45.46 47.23 59.85
squad|few-shot|f1|58.86 62.33 69.75|46.62 53.91 65.90|48.11 52.34 51.95|58.33 63.78 69.93
drop|zero-shot|f1|17.68 19.96 27.53|13.29 13.23 15.79|14.70 12.34 13.08|14.71 10.64 15.23
drop|few-shot|f1|25.43 30.08 35.27|23.84 30.99 35.85|21.61 27.11 27.78|23.89 29.39 33.34
translation|zero-shot|bleu|30.65 34.99 38.92|25.56 33.25 36.90|19.85 25.22 24.16|25.77 30.41 34.28
translation|few-shot|bleu|31.37 35.49 39.93|24.73 31.76 35.07|21.65 29.96 26.58|27.67 33.56 36.76
cnn_dm|zero-shot|rouge_l|.182 .197 .196|.198 .235 .225|.218 .231 .227|.214 .231 .220
preference||win_rate|.142 .193 .240|.348 .404 .500|.524 .578 .626|.527 .555 .660
preference||likert|2.26 2.19 2.52|3.38 3.58 3.96|4.16 4.36 4.58|4.26 4.24 4.78
preference||hallucination|.621 .466 .507|.287 .247 .137|.230 .164 .202|.207 .096 .178
"""


def read(table=TABLE):
    """{(task, prompt, metric): {model: {size: number}}}."""
    out = {}
    for line in table.strip().split("\n"):
        *key, numbers = (part.strip() for part in line.split("|", 3))
        out[tuple(key)] = {model: dict(zip(SIZES, map(float, cell.split())))
                           for model, cell in zip(MODELS, numbers.split("|"))}
    return out


KNOWN = read()


def beside(task, prompt, metric):
    """The paper's numbers {model: {size: number}}, None where it has none."""
    return KNOWN.get((task, prompt, metric)) or KNOWN.get((task, "", metric))
