{{/* Egress to a destination of networkPolicy: its peers and TCP ports. */}}
{{- define "qlora.egress" -}}
- to: {{- toYaml .peers | nindent 4 }}
  ports:
    {{- range .ports }}
    - {port: {{ int64 . }}, protocol: TCP}
    {{- end }}
{{- end }}

{{- define "qlora.egressDns" -}}
- to: {{- toYaml .peers | nindent 4 }}
  ports:
    {{- range .ports }}
    - {port: {{ int64 . }}, protocol: UDP}
    - {port: {{ int64 . }}, protocol: TCP}
    {{- end }}
{{- end }}

{{- define "qlora.egressMlflow" -}}
{{- if .Values.mlflow.enabled -}}
- to:
    - podSelector:
        matchLabels: {{- include "qlora.selector" . | nindent 10 }}
          app.kubernetes.io/component: mlflow
  ports: [{port: http, protocol: TCP}]
{{- else -}}
{{ include "qlora.egress" .Values.networkPolicy.mlflow }}
{{- end }}
{{- end }}
