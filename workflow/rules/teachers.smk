"""Teachers, each trained once for a seed. Students depend on the small digest: a teacher that comes out the same re-runs
nothing."""


rule teacher:
    input:
        digest=lambda wildcards: [
            f"results/data/{data}.json"
            for data in [CONFIG.teachers[wildcards.teacher].data]
            if data
        ],
    output:
        digest=ensure("results/teachers/{teacher}/{seed}.json", non_empty=True),
        tensors=ensure("results/teachers/{teacher}/{seed}.safetensors", non_empty=True),
    log:
        "results/logs/teachers/{teacher}/{seed}.log",
    conda:
        "../../envs/bilevel.yaml"
    threads: CONFIG.compute.threads
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
        gpu=1 if CONFIG.compute.device == "cuda" else 0,
    params:
        folder=subpath(output.digest, parent=True),
        checkpoint="results/checkpoints/teachers/{teacher}/{seed}.safetensors",
        data=lambda wildcards, input: [
            f"--data {path.removesuffix('.json')}.safetensors" for path in input.digest
        ],
        spec=lambda wildcards: CONFIG.teacher_spec(wildcards.teacher),
        code=lambda wildcards: teacher_code_hash(
            CONFIG.teachers[wildcards.teacher].teacher
        ),
    shell:
        "python -m bilevel teacher {wildcards.teacher} --seed {wildcards.seed} --spec {params.spec:q} {params.data}"
        " --checkpoint {params.checkpoint} --output {params.folder}"
        " >> {log} 2>&1 || {{ tail -n 5 {log} >&2; exit 1; }}"
