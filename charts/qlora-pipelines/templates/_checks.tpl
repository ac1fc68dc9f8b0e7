{{/* What contradicts itself is refused here, with the value's path; single values are refused by values.schema.json. */}}
{{- define "qlora.checks" -}}
{{- $values := .Values -}}
{{- $mlflow := $values.mlflow -}}
{{- if not $values.store.uri -}}
{{- fail "store.uri: give a prefix in a bucket to keep models in: s3://, gs://, az:// or abfss://" -}}
{{- end -}}
{{- range $path, $uri := dict "store.uri" $values.store.uri "store.modelsUri" $values.store.modelsUri "mlflow.artifacts" $mlflow.artifacts -}}
{{- if and $uri (not (regexMatch "^(s3|gs|az|abfss)://" $uri)) -}}
{{- $scheme := regexFind "^[A-Za-z][-+.A-Za-z0-9]*:/*" $uri | default "a folder" -}}
{{- fail (printf "%s: %s is not read here; give a prefix in a bucket: s3://, gs://, az:// or abfss://" $path $scheme) -}}
{{- end -}}
{{- if and (hasPrefix "az://" $uri) (not $values.store.azureAccount) -}}
{{- fail (printf "store.azureAccount: name the storage account that the az:// address of %s is in" $path) -}}
{{- end -}}
{{- end -}}
{{- if and $mlflow.enabled $mlflow.externalUri -}}
{{- fail "mlflow.externalUri: mlflow.enabled runs a server here; set one of the two" -}}
{{- end -}}
{{- if not (or $mlflow.enabled $mlflow.externalUri) -}}
{{- fail "mlflow.externalUri: give the address of an MLflow, or set mlflow.enabled" -}}
{{- end -}}
{{- if $mlflow.enabled -}}
{{- if and $mlflow.auth.enabled (not $mlflow.auth.adminSecret) -}}
{{- fail "mlflow.auth.adminSecret: name the secret with the administrator's login, or switch mlflow.auth.enabled off" -}}
{{- end -}}
{{- $ns := .Release.Namespace -}}
{{- $server := printf "%s-mlflow" (include "qlora.name" .) -}}
{{- if and .Release.IsUpgrade $mlflow.auth.enabled (lookup "apps/v1" "Deployment" $ns $server) -}}
{{- $held := (lookup "v1" "Secret" $ns $mlflow.auth.adminSecret).data | default dict -}}
{{- if not (hasKey $held "MLFLOW_FLASK_SERVER_SECRET_KEY") -}}
{{- fail (printf "mlflow.auth.adminSecret: no secret %s has MLFLOW_FLASK_SERVER_SECRET_KEY, so MLflow would be stopped and not start again; see Upgrade in the chart's README" $mlflow.auth.adminSecret) -}}
{{- end -}}
{{- end -}}
{{- if and $mlflow.database.host (not $mlflow.database.secret) -}}
{{- fail "mlflow.database.secret: name the secret with the login of mlflow.database.host" -}}
{{- end -}}
{{- if and $mlflow.database.secret (not $mlflow.database.host) -}}
{{- fail "mlflow.database.host: mlflow.database.secret is set; name the host it is for" -}}
{{- end -}}
{{- if and (gt (int $mlflow.replicas) 1) (not $mlflow.database.host) -}}
{{- fail "mlflow.replicas: SQLite serves one server; set mlflow.database.host for more" -}}
{{- end -}}
{{- if $mlflow.ingress.enabled -}}
{{- if not $mlflow.auth.enabled -}}
{{- fail "mlflow.ingress.enabled: mlflow.auth.enabled is off; MLflow is not opened to the outside without logins" -}}
{{- end -}}
{{- range $key := list "host" "tlsSecret" -}}
{{- if not (get $mlflow.ingress $key) -}}
{{- fail (printf "mlflow.ingress.%s: required with mlflow.ingress.enabled" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- else if $mlflow.ingress.enabled -}}
{{- fail "mlflow.ingress.enabled: there is no MLflow here; set mlflow.enabled" -}}
{{- end -}}
{{- range $name, $trigger := $values.triggers -}}
{{- if not (or $trigger.schedule $trigger.sensor) -}}
{{- fail (printf "triggers.%s.schedule: give a cron expression, or a sensor" $name) -}}
{{- end -}}
{{- end -}}
{{- if $values.networkPolicy.enabled -}}
{{- $policy := $values.networkPolicy -}}
{{- $needed := dict "store" true "kubernetesApi" true "mlflow" (not $mlflow.enabled) "database" (and $mlflow.enabled $mlflow.database.host) -}}
{{- range $key, $need := $needed -}}
{{- if and $need (not (get $policy $key).peers) -}}
{{- fail (printf "networkPolicy.%s.peers: say where it is, or the pods cannot reach it" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
